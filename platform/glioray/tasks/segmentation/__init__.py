"""From a case to a mask: torch only, shared by validation, evaluation, batch prediction and serving."""
