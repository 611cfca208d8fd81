"""Commands around the trainer: measuring, checking, watching, comparing and reporting runs."""
