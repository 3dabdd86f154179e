"""The dashboard: a static client of the public API, in the browser, with no back door."""
