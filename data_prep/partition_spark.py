"""Write a log in the layout for many machines, with Spark: Parquet parts by a hash of the user, sorted by user and time.

    spark-submit data_prep/partition_spark.py --log hdfs:///logs/*.parquet --out hdfs:///parts --parts 1024
    python -m data_prep.partition_spark --log log.parquet --out parts            # local mode

`data_prep/README.md` describes the layout. This file needs PySpark and a Java runtime, and nothing of jaxrec.
"""

from __future__ import annotations

import argparse
from typing import Any


def partition(spark: Any, log: str, out: str, parts: int, columns: tuple[str, str, str]) -> None:
    """Write the layout.

    Args:
      spark: a SparkSession.
      log: path or pattern of Parquet files, or of CSV files with a header (by its ending).
      out: directory to write, which must not exist.
      parts: number of parts.
      columns: names of the columns of users, items and whole seconds.
    """
    from pyspark.sql import functions as sql

    frame = spark.read.option("header", True).csv(log) if log.endswith(".csv") else spark.read.parquet(log)
    user, item, time = (sql.col(f"`{name}`") for name in columns)
    frame = frame.select(
        user.cast("string").alias("user_id"),
        item.cast("string").alias("item_id"),
        time.cast("bigint").alias("timestamp"),
    )
    number = sql.conv(sql.substring(sql.md5("user_id"), 1, 8), 16, 10).cast("bigint") % parts
    frame = frame.withColumn("part", sql.lpad(number.cast("string"), 5, "0"))
    ordered = frame.repartition(parts, "part").sortWithinPartitions("part", "user_id", "timestamp", "item_id")
    ordered.write.partitionBy("part").parquet(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", required=True, help="Parquet files, or CSV files with a header")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--parts", type=int, default=64)
    parser.add_argument("--user-column", default="user_id")
    parser.add_argument("--item-column", default="item_id")
    parser.add_argument("--time-column", default="timestamp", help="whole seconds")
    options = parser.parse_args()

    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("jaxrec-partition").getOrCreate()
    try:
        columns = (options.user_column, options.item_column, options.time_column)
        partition(spark, options.log, options.out, options.parts, columns)
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
