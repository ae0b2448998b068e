"""Number formats for a model that is made already."""
