"""Numbers about predictions: from arrays, or from the files of finished runs."""
