"""The section ``model`` of the older form, in ensq's: networks by size, irreps, priors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from ensq.config.model import AllegroConfig, MaceConfig, PainnConfig
from ensq.config.notes import Notes
from ensq.errors import ConfigError

_CUTOFF = 10.0
_CAPACITY = "room for neighbours is counted over all frames"
_SPECIES = "species are counted in all frames of the data"
_NO_EFFECT = {
    "dr_threshold": "neighbours are found anew for every frame",
    "debug_priors": "`ensq config show` prints the priors that are used",
}
# Of a network's section, where ensq's own has no such key.
_NETWORK_NO_EFFECT = {
    "embed_n_hidden": "the embedding is as wide as mlp_n_hidden",
    "species_embed": "pairs of species have a learned embedding of their own",
    "max_edges": _CAPACITY,
    "max_edge_multiplier": _CAPACITY,
    "num_types": _SPECIES,
    "n_species": _SPECIES,
    "num_species": _SPECIES,
}
_PRIORS_NO_EFFECT = {
    "theta0": "angles have the series a, b; a harmonic angle was never computed",
    "k_theta": "angles have the series a, b; a harmonic angle was never computed",
}
_PRIORS_RENAMED = {"k_dihedral": "k_dih", "gamma_dihedral": "gamma_dih"}
# What existing users' Allegro is where a file doesn't say.
_ALLEGRO_DEFAULTS = {"max_ell": 2, "n_channels": 128}
_LIMITS = {"max_ell": 3, "num_layers": 4}
_SIZES = ("large", "med")
_DEFAULT_SIZES = (None, "default", "normal")
_IRREP = re.compile(r"\s*(?:(?P<count>\d{1,6})\s*x\s*)?(?P<ell>\d{1,2})[eo]\s*")

_STRUCTS = {"allegro": AllegroConfig, "mace": MaceConfig, "painn": PainnConfig}
_OWN = {network: set(struct.__struct_fields__) for network, struct in _STRUCTS.items()}
_OLDER = {
    network: ({"hidden_irreps"} | set(_NETWORK_NO_EFFECT)) - _OWN[network] for network in _OWN
}


def older_model_keys(model: dict[str, Any]) -> Iterator[str]:
    """The keys of ``model`` that only the older form has."""
    sections = {f"{network}_{size}" for network in _OWN for size in _SIZES}
    for key, value in model.items():
        network, _, rest = key.partition("_")
        if key in _NO_EFFECT or key in sections or (network in _OWN and rest == "size"):
            yield key
        elif key in _OWN and isinstance(value, dict):
            yield from (f"{key}.{below}" for below in value if below in _OLDER[key])
        elif key == "priors" and isinstance(value, dict):
            older = {**_PRIORS_NO_EFFECT, **_PRIORS_RENAMED}
            yield from (f"{key}.{below}" for below in value if below in older)


def translate_model(model: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """``model`` in ensq's form. Raises ConfigError."""
    new = dict(model)
    for key, why in _NO_EFFECT.items():
        if key in new:
            del new[key]
            notes.no_effect(f"model.{key}", why)
    if "cutoff" not in new:
        new["cutoff"] = _CUTOFF
        notes.translated("model.cutoff", f"left out, which meant {_CUTOFF:g} Angstrom")
    for network in _OWN:
        _network(new, network, notes)
    if isinstance(new.get("priors"), dict):
        new["priors"] = _priors(new["priors"], notes)
    elif "priors" in new and new["priors"] is None:
        del new["priors"]
    if new.get("train_priors") is True and not new.get("use_priors"):
        new["train_priors"] = False
        notes.no_effect("model.train_priors", "model.use_priors is off: no priors to train")
    return new


def _network(new: dict[str, Any], network: str, notes: Notes) -> None:
    """One section per network, of the size that the file chooses."""
    chosen = new.get("ml_model", "allegro") == network
    size_key = f"{network}_size"
    present = size_key in new or any(
        name in new for name in (network, *(f"{network}_{size}" for size in _SIZES))
    )
    if not present and not chosen:
        return
    size = new.pop(size_key, None)
    source = _source(new, network, size, notes)
    sections = {f"{network}_{other}" for other in (*_SIZES, size)} & new.keys() - {size_key}
    section = new.pop(source, None)
    if network in new:
        _check_keys(network, new.pop(network), f"model.{network}")
        notes.no_effect(f"model.{network}", f"model.{size_key}: {size} chooses another section")
    for other in sorted(sections - {source}):
        _check_keys(network, new.pop(other), f"model.{other}")
        notes.no_effect(f"model.{other}", f"model.{size_key} chooses another section")
    section = {} if section is None else section
    if not isinstance(section, dict):
        raise ConfigError(f"model.{source}: expected a section with the network's settings")
    if source != network:
        notes.translated(f"model.{source}", f"-> model.{network}")
    heard = notes if chosen else Notes()
    new[network] = _section(network, section, f"model.{source}", heard)
    if not chosen:
        notes.no_effect(f"model.{source}", f"model.ml_model is {new.get('ml_model', 'allegro')}")


def _source(new: dict[str, Any], network: str, size: Any, notes: Notes) -> str:
    """The name of the section that a size means."""
    at = f"model.{network}_size"
    if size is not None and not isinstance(size, str):
        raise ConfigError(f"{at}: expected the name of a size, such as default or large")
    if size in _DEFAULT_SIZES:
        if size is not None:
            notes.translated(at, f"{size} -> model.{network}")
        return network
    if new.get(f"{network}_{size}") is not None:
        notes.translated(at, f"{size} -> model.{network} holds what model.{network}_{size} says")
        return f"{network}_{size}"
    notes.translated(at, f"{size} has no section of its own, which meant model.{network}")
    return network


def _check_keys(network: str, section: Any, at: str) -> None:
    """A section that is not chosen may still not hold what nobody knows."""
    known = sorted(_OWN[network] | _OLDER[network])
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{at}: expected a section with the network's settings")
    for key in section or ():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown key {at}.{key}; {hint}")


def _section(network: str, section: dict[str, Any], at: str, notes: Notes) -> dict[str, Any]:
    """The settings of one network; ``at`` is where the file has them."""
    _check_keys(network, section, at)
    new = dict(section)
    for key in sorted(_OLDER[network] & new.keys() - {"hidden_irreps"}):
        del new[key]
        notes.no_effect(f"{at}.{key}", _NETWORK_NO_EFFECT[key])
    if network == "allegro":
        own = new.keys() & {"n_channels", "symmetry"}
        _irreps(new, at, notes)
        _older_defaults(new, own, at, notes)
    _widths(new, at, notes)
    for key in ("max_ell", "num_layers"):
        value = new.get(key)
        if isinstance(value, int | float) and value > _LIMITS[key]:
            raise ConfigError(f"{at}.{key} is {value}; ensq goes up to {_LIMITS[key]}")
    absent = [key for key in _OWN[network] - {"symmetry", "avg_num_neighbors"} if key not in new]
    if absent:
        order = _STRUCTS[network].__struct_fields__
        names = ", ".join(sorted(absent, key=order.index))
        notes.translated(at, f"not in the file, so ensq's defaults: {names}")
    return new


def _irreps(new: dict[str, Any], at: str, notes: Notes) -> None:
    """``128x0e + 128x1o`` as a number of channels and a highest l."""
    if "hidden_irreps" not in new:
        return
    text = new.pop("hidden_irreps")
    key = f"{at}.hidden_irreps"
    matches = [_IRREP.fullmatch(part) for part in str(text).split("+")]
    parts = [match for match in matches if match is not None]
    if len(parts) != len(matches):
        raise ConfigError(f"{key}: expected irreps such as 32x0e + 32x1o (the value is {text!r})")
    counts = {int(part["count"] or 1) for part in parts}
    ell = max(int(part["ell"]) for part in parts)
    added = []
    if "n_channels" not in new:
        new["n_channels"] = max(counts)
        added.append(f"n_channels: {max(counts)}")
    if new.get("max_ell") is None:
        new["max_ell"] = ell
        added.append(f"max_ell: {ell}")
    notes.translated(key, f"{text} -> {', '.join(added) or 'n_channels and max_ell count'}")
    if len(counts) > 1:
        notes.hint(key, "ensq's channels are the same for every l: the largest number is taken")
    if new["max_ell"] != ell:
        notes.hint(key, f"l goes to {ell} in it; max_ell: {new['max_ell']} counts for all here")


def _older_defaults(new: dict[str, Any], own: set[str], at: str, notes: Notes) -> None:
    """Existing users' usual size where the file leaves it open, and what differs in any case."""
    if not own:
        for key, value in _ALLEGRO_DEFAULTS.items():
            if key not in new:
                new[key] = value
                notes.translated(f"{at}.{key}", f"left out, which meant {value}")
    if "symmetry" not in new:
        notes.translated(
            f"{at}.symmetry",
            "auto: with one bead per residue, mirror images may differ here; "
            "symmetry: o3 makes them equal, as they were there",
        )


def _widths(new: dict[str, Any], at: str, notes: Notes) -> None:
    """A list of hidden widths as one width and a number of layers."""
    widths = new.get("mlp_n_hidden")
    if not isinstance(widths, list):
        return
    if not widths or not all(isinstance(w, int) and not isinstance(w, bool) for w in widths):
        raise ConfigError(f"{at}.mlp_n_hidden: expected a whole number, or a list of them")
    new["mlp_n_hidden"] = max(widths)
    layers = "mlp_n_layers" not in new
    if layers:
        new["mlp_n_layers"] = len(widths)
    text = f"{widths} -> {max(widths)}" + (f", mlp_n_layers: {len(widths)}" if layers else "")
    notes.translated(f"{at}.mlp_n_hidden", text)


def _priors(priors: dict[str, Any], notes: Notes) -> dict[str, Any]:
    at = "model.priors"
    new = dict(priors)
    for key, why in _PRIORS_NO_EFFECT.items():
        if key in new:
            del new[key]
            notes.no_effect(f"{at}.{key}", why)
    for old, name in _PRIORS_RENAMED.items():
        if old in new and name in new:
            del new[old]
            notes.no_effect(f"{at}.{old}", f"{name} is given too, and it counts")
        elif old in new:
            new[name] = new.pop(old)
            notes.translated(f"{at}.{old}", f"-> {name}")
    for key in ("a", "b", "k_dih", "gamma_dih"):
        value = new.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            new[key] = [value]
            notes.translated(f"{at}.{key}", f"{value} -> [{value}]")
        elif key in new and value is None:
            del new[key]
    for one, two in (("a", "b"), ("b", "a"), ("k_dih", "gamma_dih")):
        if isinstance(new.get(one), list) and two not in new:
            new[two] = [0.0] * len(new[one])
            notes.translated(f"{at}.{two}", f"left out, so zeros beside {one}")
    if "weights" in new and new["weights"] is None:
        del new["weights"]
    if new.get("spline_file") and new.get("use_spline_priors") is None:
        new["use_spline_priors"] = True
        notes.translated(f"{at}.spline_file", "-> use_spline_priors: true, as was meant there")
    _dihedral_sign(at, new, notes)
    return new


def _dihedral_sign(at: str, new: dict[str, Any], notes: Notes) -> None:
    """The older code's dihedral angle has the opposite sign of IUPAC's (and LAMMPS')."""
    if "dihedral_sign" in new or not (new.get("k_dih") or new.get("use_spline_priors")):
        return
    new["dihedral_sign"] = -1
    notes.trap(
        f"{at}.gamma_dih" if new.get("k_dih") else f"{at}.spline_file",
        "the dihedral angle there has the opposite sign of IUPAC's (right-handed helix: -50); kept "
        "by dihedral_sign: -1. Set 1 if yours were fitted with the usual sign",
    )
