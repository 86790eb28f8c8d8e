"""Filters of manifests: small named functions, listed in a config. Need the extra `filters`."""
