"""Recurrent layers of several libraries, for the conformance suite."""
