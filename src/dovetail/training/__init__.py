"""Models and customer-level DP-SGD; knows neither networks nor files."""
