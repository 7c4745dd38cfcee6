// Package seal keeps secrets unreadable at rest: it seals and opens values
// with the cluster's key, and makes digests that change with a value without
// giving it away. It also masks secret values in text (Scrubber).
//
// It is not a store: what is sealed is kept by package state. It prints and
// logs nothing, its errors never hold plaintext, and its types show nothing of
// their keys when they are printed. Control calls it. It starts no goroutine;
// everything but Load is pure, and safe for concurrent use.
//
// A sealed box, of version 1:
//
//	byte 0        1
//	bytes 1-8     id of the key: the first bytes of SHA-256 of "roost key id" and the key
//	bytes 9-20    nonce, random
//	the rest      AES-256-GCM of the plaintext, with its tag; the additional
//	              data is bytes 0-8 and the context
//
// The context says what the box is for ("secrets", app, version ...): a box
// that was copied to another place does not open there.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
)

const (
	boxVersion = 1
	idSize     = 8
	headSize   = 1 + idSize
	keySize    = 32
	digestSize = 8
	// keyPrefix begins a line of a key file: a scanner for leaked keys finds it.
	keyPrefix = "roost-key-1:"
)

// Keyring holds the keys of a cluster. The first one seals; all of them open,
// so that a key can be replaced: add the new one on top, set the secrets
// again, and take the old one away when nothing is sealed with it any more.
type Keyring struct{ keys []*key }

type key struct {
	id   [idSize]byte
	aead cipher.AEAD
	mac  [keySize]byte // for digests
}

// String keeps keys out of whatever prints a Keyring.
func (k *Keyring) String() string { return fmt.Sprintf("keyring of %d", len(k.keys)) }

// GoString is String.
func (k *Keyring) GoString() string { return k.String() }

// LogValue is String.
func (k *Keyring) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Load reads the key file at path, and makes it, with a fresh key, when there
// is none. The file is for root only, whatever its mode was.
func Load(path string) (*Keyring, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		line, err := NewKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		data = []byte("# The key of this cluster's secrets. Without it they are lost: keep a copy\n# in a safe place, apart from the backups of the data. The first line seals.\n" + line + "\n")
		if err := atomicfile.Write(path, data, 0o600); err != nil {
			return nil, fmt.Errorf("key of the secrets: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("key of the secrets: %w", err)
	default:
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, fmt.Errorf("key of the secrets: %w", err)
		}
	}
	k, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// NewKey makes a key as a line of a key file.
func NewKey(random io.Reader) (string, error) {
	var raw [keySize]byte
	if _, err := io.ReadFull(random, raw[:]); err != nil {
		return "", fmt.Errorf("make a key: %w", err)
	}
	return keyPrefix + base64.RawStdEncoding.EncodeToString(raw[:]), nil
}

// Parse reads a key file: a key on each line, "#" begins a comment.
func Parse(data []byte) (*Keyring, error) {
	ring := &Keyring{}
	for n, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, ok := strings.CutPrefix(line, keyPrefix)
		raw, err := base64.RawStdEncoding.DecodeString(text)
		if !ok || err != nil || len(raw) != keySize {
			return nil, fmt.Errorf("line %d is not a key: it has to be %s and %d bytes in base64", n+1, keyPrefix, keySize)
		}
		k, err := newKey(raw)
		if err != nil {
			return nil, err
		}
		ring.keys = append(ring.keys, k)
	}
	if len(ring.keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return ring, nil
}

func newKey(raw []byte) (*key, error) {
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}
	k := &key{}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("roost key id\x00"), raw...))
	copy(k.id[:], sum[:])
	h := hmac.New(sha256.New, raw)
	h.Write([]byte("roost digest key"))
	h.Sum(k.mac[:0])
	return k, nil
}

// Seal returns a box that only Open with the same context opens.
func (k *Keyring) Seal(plain, context []byte) ([]byte, error) {
	return k.seal(rand.Reader, plain, context)
}

func (k *Keyring) seal(random io.Reader, plain, context []byte) ([]byte, error) {
	first := k.keys[0]
	box := append([]byte{boxVersion}, first.id[:]...)
	nonce := make([]byte, first.aead.NonceSize())
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	data := additional(box, context)
	return first.aead.Seal(append(box, nonce...), nonce, plain, data), nil
}

func additional(head, context []byte) []byte {
	return append(append([]byte(nil), head[:headSize]...), context...)
}

// Open returns what was sealed in box. A box that was changed, of another
// context, or of a key that is not in the ring is an error.
func (k *Keyring) Open(box, context []byte) ([]byte, error) {
	if len(box) < headSize || box[0] != boxVersion {
		return nil, errors.New("open: not a sealed box of version 1")
	}
	for _, key := range k.keys {
		if [idSize]byte(box[1:headSize]) != key.id {
			continue
		}
		size := key.aead.NonceSize()
		if len(box) < headSize+size {
			return nil, errors.New("open: the sealed box is cut off")
		}
		plain, err := key.aead.Open(nil, box[headSize:headSize+size], box[headSize+size:], additional(box, context))
		if err != nil {
			return nil, errors.New("open: the sealed box was damaged, or belongs elsewhere")
		}
		return plain, nil
	}
	return nil, &root.Error{Kind: root.Unavailable, Message: "the key that these secrets were sealed with is not on this host: restore secrets.key in the data directory from its copy, or set the secrets again",
		Err: fmt.Errorf("no key %s", KeyID(box))}
}

// KeyID says with which key a box was sealed, in hex.
func KeyID(box []byte) string {
	if len(box) < headSize {
		return ""
	}
	return hex.EncodeToString(box[1:headSize])
}

// CurrentKey is the id of the key that seals.
func (k *Keyring) CurrentKey() string { return hex.EncodeToString(k.keys[0].id[:]) }

// Digest is 16 hex digits that change with any of the parts. Without the key
// nobody can tell whether a guess is right.
func (k *Keyring) Digest(parts ...string) string {
	h := hmac.New(sha256.New, k.keys[0].mac[:])
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return hex.EncodeToString(h.Sum(nil)[:digestSize])
}
