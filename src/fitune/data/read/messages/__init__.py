"""One message or one conversation, whatever wrote it → `Message`s as templates get them."""
