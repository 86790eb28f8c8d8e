"""Probes of a trained model, the judges that hear, and the report."""
