"""Every plot of the dashboard: plain functions from results to plotly figures. No module here imports torch."""
