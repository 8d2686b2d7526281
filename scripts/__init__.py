"""Commands that run, deploy and sweep the app."""
