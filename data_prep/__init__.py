"""Recipes: the bundled dataset rebuilt, and audits of public datasets as a table."""
