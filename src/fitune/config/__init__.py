"""Settings: loaded from YAML and flags and validated, all errors reported at once.

In: a YAML file of differences from the defaults, and dotted overrides. Out: `sections.Settings`, or a `SettingsError` with
each fault's place, value and remedy; the description of every setting for flags, help, schema and docs.
Reads what methods, optimizers, quantizations, data and export forms say of themselves. Knows nothing of torch. Everything
below this package takes plain values: no settings object gets there.
"""

from fitune.config.settings_loader import load_settings

__all__ = ["load_settings"]
