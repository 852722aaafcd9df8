"""What an alert says of a flow's class: how bad, what happened, what to do, which ATT&CK technique.

The classes are those of IoT-23 (doi 10.5281/zenodo.4743746), techniques those of MITRE ATT&CK for
Enterprise, version 14.
"""

from __future__ import annotations

from gradsense.tasks.task import ClassAdvice

_ISOLATE = "Take the device off the network"
_CLEAN = (
    f"{_ISOLATE}. Reset it to factory settings, install the newest firmware and set a new "
    "password before it comes back."
)
_BLOCK = f"Block the other address at the router. {_CLEAN}"
_REPLACE = f"{_BLOCK} Replace it if the maker has no update."

_CC = "it behaves as if somebody steers it from outside (command and control)"
_BEAT = "it reports at regular times to a server that steers bots (heartbeat)"

ADVICE: dict[str, ClassAdvice] = {
    "Attack": ClassAdvice(
        "high", "Attack on another device", "it tries to break into other devices", _CLEAN, "T1210"
    ),
    "C&C": ClassAdvice("high", "Controlled from outside", _CC, _BLOCK, "T1071"),
    "C&C-FileDownload": ClassAdvice(
        "critical",
        "Malware is being loaded",
        "it fetches a file from a server that steers bots",
        _BLOCK,
        "T1105",
    ),
    "C&C-HeartBeat": ClassAdvice("high", "Controlled from outside", _BEAT, _BLOCK, "T1071"),
    "C&C-HeartBeat-Attack": ClassAdvice(
        "critical", "Controlled and attacking", f"{_BEAT} and attacks others", _BLOCK, "T1210"
    ),
    "C&C-HeartBeat-FileDownload": ClassAdvice(
        "critical", "Malware is being loaded", f"{_BEAT} and fetches a file there", _BLOCK, "T1105"
    ),
    "C&C-Mirai": ClassAdvice(
        "high", "Mirai botnet", "it talks to a server of the Mirai botnet", _BLOCK, "T1071"
    ),
    "C&C-PartOfAHorizontalPortScan": ClassAdvice(
        "critical", "Controlled and scanning", f"{_CC} and looks for victims", _BLOCK, "T1046"
    ),
    "C&C-Torii": ClassAdvice(
        "critical", "Torii botnet", "it talks to a server of the Torii botnet", _REPLACE, "T1071"
    ),
    "DDoS": ClassAdvice("high", "DDoS attack", "it takes part in a DDoS attack", _CLEAN, "T1498"),
    "FileDownload": ClassAdvice(
        "critical", "Malware is being loaded", "it fetches a file as malware does", _BLOCK, "T1105"
    ),
    "Okiru": ClassAdvice("high", "Okiru botnet", "it acts like a bot of Okiru", _CLEAN, "T1584"),
    "Okiru-Attack": ClassAdvice(
        "critical", "Okiru botnet attacks", "it attacks others like a bot of Okiru", _CLEAN, "T1210"
    ),
    "PartOfAHorizontalPortScan": ClassAdvice(
        "medium",
        "Port scan",
        "it asks many addresses for the same open port, as bots do to find victims",
        f"If you did not start a scan yourself: {_CLEAN[0].lower()}{_CLEAN[1:]}",
        "T1046",
    ),
    "PartOfAHorizontalPortScan-Attack": ClassAdvice(
        "high",
        "Port scan and attack",
        "it looks for open ports and attacks what it finds",
        _CLEAN,
        "T1210",
    ),
    "Torii": ClassAdvice(
        "critical", "Torii botnet", "it acts like a bot of Torii", _REPLACE, "T1584"
    ),
    "Malicious": ClassAdvice("high", "Malicious traffic", "it behaves like malware", _CLEAN, None),
}

NOVEL_TRAFFIC = ClassAdvice(
    "low",
    "Unknown behaviour",
    "the model has never seen traffic like this",
    "Ask what changed: an update, a new app, a new service. If nothing did, watch the device "
    "and look up the other address.",
)

OTHER_TRAFFIC = ClassAdvice(
    "medium", "Suspicious traffic: {label}", "it behaves like '{label}'", _CLEAN
)
