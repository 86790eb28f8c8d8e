"""Sources of recordings: folders, manifests, Parquet, WebDataset tars and TFDS data sets."""

from bagpiper_jax.preparation.sources.folder import Folder
from bagpiper_jax.preparation.sources.jsonl import JsonLines
from bagpiper_jax.preparation.sources.opening import open_source
from bagpiper_jax.preparation.sources.parquet import Parquet
from bagpiper_jax.preparation.sources.tfds import TfdsSet
from bagpiper_jax.preparation.sources.webdataset import WebDataset

__all__ = ["Folder", "JsonLines", "Parquet", "TfdsSet", "WebDataset", "open_source"]
