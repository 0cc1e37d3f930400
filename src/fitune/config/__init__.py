"""Settings: loaded from YAML and flags and validated, all errors reported at once.

In: a YAML file of differences from the defaults, and dotted overrides. Out: `fitune.config.sections.Settings`, or one
`SettingsError` that lists every fault with its place, value and remedy; and the pages generated from the same source.
Knows nothing of torch; transformers is imported only when there is a ``trainer:`` section to check.
"""

from fitune.config.settings_loader import load_settings

__all__ = ["load_settings"]
