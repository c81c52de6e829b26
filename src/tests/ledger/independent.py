"""Checks what a Milepost says of its log with code that knows nothing of Milepost.

Sigstore's client verifies inclusions and the signed checkpoint, pymerkle builds the tree from the
leaves. On standard input:

    {"key": "<name>+<id>+<base64>", "checkpoint": "<the signed note>",
     "inclusions": [answers of /api/proofs/inclusion], "consistencies": [answers of …/consistency]}

with an inclusion for every leaf. Each one is altered, too, and has to be refused. Prints how many
were accepted and how many refused.
"""

import base64
import json
import sys
from types import SimpleNamespace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pymerkle import InmemoryTree
from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import verify_checkpoint
from sigstore.errors import VerificationError


class Keyring:
    """What Sigstore asks for signatures."""

    def __init__(self, verifier_key):
        _, key_id, encoded = verifier_key.split("+", 2)
        typed = base64.b64decode(encoded)
        assert typed[0] == 1, "Ed25519"
        self.id = bytes.fromhex(key_id)
        self.key = Ed25519PublicKey.from_public_bytes(typed[1:])

    def verify(self, *, key_id, signature, data):
        assert key_id[:4] == self.id
        try:
            self.key.verify(signature, data)
        except InvalidSignature as error:
            raise VerificationError("signature") from error


def entry(proof, note, keyring, altered=None):
    """An entry of Sigstore's log, made of an inclusion; some fields may be altered."""
    fields = {
        "log_index": proof["leaf_index"],
        "tree_size": proof["tree_size"],
        "hashes": [bytes.fromhex(it) for it in proof["hashes"]],
        "root_hash": bytes.fromhex(proof["root_hash"]),
        "leaf": base64.b64decode(proof["leaf"]),
        "note": note,
    } | (altered or {})
    inclusion = SimpleNamespace(
        log_index=fields["log_index"],
        tree_size=fields["tree_size"],
        hashes=fields["hashes"],
        root_hash=fields["root_hash"],
        checkpoint=SimpleNamespace(envelope=fields["note"]),
    )
    inner = SimpleNamespace(
        inclusion_proof=inclusion,
        canonicalized_body=fields["leaf"],
        log_id=SimpleNamespace(key_id=keyring.id),
    )
    return SimpleNamespace(_inner=inner)


def holds(entry, keyring):
    try:
        verify_merkle_inclusion(entry)
        verify_checkpoint(keyring, entry)
    except (VerificationError, ValueError):
        return False
    return True


def flipped(value):
    return bytes([value[0] ^ 1]) + value[1:]


def alterations(proof, note):
    hashes = [bytes.fromhex(it) for it in proof["hashes"]]
    leaf = base64.b64decode(proof["leaf"])
    yield {"leaf": flipped(leaf)}
    yield {"leaf": leaf + b"\0"}
    yield {"root_hash": flipped(bytes.fromhex(proof["root_hash"]))}
    yield {"log_index": proof["leaf_index"] ^ 1}
    yield {"note": note.replace("\n" + str(proof["tree_size"]) + "\n", "\n7\n", 1)}
    yield {"note": note[:-6] + ("A" if note[-6] != "A" else "B") + note[-5:]}
    if hashes:
        yield {"hashes": hashes[:-1]}
        yield {"hashes": hashes + hashes[-1:]}
        yield {"hashes": [flipped(hashes[0]), *hashes[1:]]}
    if len(hashes) > 1:
        yield {"hashes": [hashes[1], hashes[0], *hashes[2:]]}


def main():
    told = json.load(sys.stdin)
    keyring, note = Keyring(told["key"]), told["checkpoint"]
    proofs = sorted(told["inclusions"], key=lambda proof: proof["leaf_index"])
    tree = InmemoryTree(algorithm="sha256")
    accepted = refused = 0
    for index, proof in enumerate(proofs):
        assert proof["leaf_index"] == index and proof["position"] == index + 1
        leaf = base64.b64decode(proof["leaf"])
        tree.append_entry(leaf)
        assert tree.get_leaf(index + 1).hex() == proof["leaf_hash"], index
        assert holds(entry(proof, note, keyring), keyring), proof
        accepted += 1
        for altered in alterations(proof, note):
            assert not holds(entry(proof, note, keyring, altered), keyring), (proof, altered)
            refused += 1
    assert tree.get_root().hex() == proofs[0]["root_hash"]
    for proof in told["consistencies"]:
        assert tree.get_root(proof["from"]).hex() == proof["from_root"], proof
        assert tree.get_root(proof["to"]).hex() == proof["to_root"], proof
        accepted += 1
    print(json.dumps({"accepted": accepted, "refused": refused}))


main()
