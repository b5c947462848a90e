"""One module for each data family: official archive in, `jaxrec.data.SequenceDataset` out."""
