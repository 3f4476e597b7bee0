package channelfile

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
)

// ErrSignature says that a file was not signed by the channel.
var ErrSignature = errors.New("the signature is wrong")

// SignatureSuffix is what the name of a detached signature has more than its file's.
const SignatureSuffix = ".sig"

// Verify checks the detached signature beside a file and gives the file's digest (SHA-256, hexadecimal), which is its
// identity. An hmac-sha256 signature is over the file; an ed25519 one is Ed25519ph (RFC 8032), over its SHA-512, so that no
// file is ever held in memory whole.
func (m *Mapping) Verify(path string) (digest string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	id, long := sha256.New(), sha512.New()
	sums := []io.Writer{id}
	var mac hash.Hash
	var key []byte
	if m.Signature.Type != "none" {
		if key, err = os.ReadFile(m.Signature.KeyFile); err != nil {
			return "", fmt.Errorf("signature.key_file: %w", err)
		}
	}
	switch m.Signature.Type {
	case "hmac-sha256":
		if key = bytes.TrimSpace(key); len(key) < 16 {
			return "", fmt.Errorf("signature.key_file: %d bytes; a secret has at least 16", len(key))
		}
		mac = hmac.New(sha256.New, key)
		sums = append(sums, mac)
	case "ed25519":
		sums = append(sums, long)
	}
	if _, err := io.Copy(io.MultiWriter(sums...), f); err != nil {
		return "", err
	}
	digest = hex.EncodeToString(id.Sum(nil))
	if m.Signature.Type == "none" {
		return digest, nil
	}
	sig, err := os.ReadFile(path + SignatureSuffix)
	if err != nil {
		return "", fmt.Errorf("%w: signature: %w", ErrSignature, err)
	}
	raw, err := decoded(sig, map[string]int{"hmac-sha256": sha256.Size, "ed25519": ed25519.SignatureSize}[m.Signature.Type])
	if err != nil {
		return "", fmt.Errorf("%w: %s%s: %w", ErrSignature, path, SignatureSuffix, err)
	}
	if mac != nil {
		if !hmac.Equal(mac.Sum(nil), raw) {
			return "", fmt.Errorf("%w: %s is not what the channel's secret signed", ErrSignature, path)
		}
		return digest, nil
	}
	pub, err := publicKey(key)
	if err != nil {
		return "", fmt.Errorf("signature.key_file: %w", err)
	}
	if err := ed25519.VerifyWithOptions(pub, long.Sum(nil), raw, &ed25519.Options{Hash: crypto.SHA512}); err != nil {
		return "", fmt.Errorf("%w: %s is not what the channel's key signed", ErrSignature, path)
	}
	return digest, nil
}

// decoded reads n bytes that are written raw, in hexadecimal or in base64.
func decoded(text []byte, n int) ([]byte, error) {
	if len(text) == n {
		return text, nil
	}
	text = bytes.TrimSpace(text)
	if raw, err := hex.DecodeString(string(text)); err == nil && len(raw) == n {
		return raw, nil
	}
	if raw, err := base64.StdEncoding.DecodeString(string(text)); err == nil && len(raw) == n {
		return raw, nil
	}
	return nil, fmt.Errorf("%d bytes belong here, raw, in hexadecimal or in base64", n)
}

func publicKey(raw []byte) (ed25519.PublicKey, error) {
	if block, _ := pem.Decode(raw); block != nil {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if pub, ok := key.(ed25519.PublicKey); ok {
			return pub, nil
		}
		return nil, fmt.Errorf("it holds a %T, no ed25519 key", key)
	}
	return decoded(raw, ed25519.PublicKeySize)
}
