package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// sign signs a file as a channel does.
func sign(keyFile, path string) error {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	_, err = io.Copy(mac, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.WriteFile(path+channelfile.SignatureSuffix, []byte(hex.EncodeToString(mac.Sum(nil))), 0o600)
}
