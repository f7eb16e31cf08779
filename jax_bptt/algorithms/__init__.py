"""`unroll`, and the offline algorithms it can run a cell by, one a file, besides `bptt`."""
