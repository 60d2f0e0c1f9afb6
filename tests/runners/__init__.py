"""Run the same pipelines on several runners, and compare their output with a plain loop."""
