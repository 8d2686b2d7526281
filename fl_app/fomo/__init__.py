"""Foundation models (FoMos): block access, loading, adapters, emulators."""
