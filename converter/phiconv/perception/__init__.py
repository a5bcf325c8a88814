"""From a picture as it is to one that an encoder takes."""
