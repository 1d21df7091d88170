"""What has to be true of the Kubernetes manifests, as functions `…(manifests) -> problems`, for tests and mutations."""
