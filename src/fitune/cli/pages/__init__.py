"""Pages generated from the code: settings, commands, schema, the order of packages."""
