"""Raw content (text, pictures, prices) to vectors."""
