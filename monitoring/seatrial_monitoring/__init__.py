"""What is watched: metrics, the request log, and the dashboards and rules made from them."""
