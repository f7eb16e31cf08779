"""Recurrent layers of several libraries, each imported when its layers are asked for."""
