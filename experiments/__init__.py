"""Published experiments repeated with this library, and tasks with real models; no part of the wheel."""
