"""A page to look at prepared data sets by."""
