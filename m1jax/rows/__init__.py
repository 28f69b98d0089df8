"""Documents to packed rows: encoding, best fit, the row format, the manifest, and stores on disk or in a bucket."""
