"""Published draft formats, one file each: recognise, read and write them."""
