"""The training harness: it knows no data set, no MLflow server, no Ray."""
