"""Call models behind an endpoint: requests, retries, HTTP and the protocols of model servers."""
