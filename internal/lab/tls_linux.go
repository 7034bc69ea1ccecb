package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"time"
)

// certSource makes one self-signed certificate for whatever name a client asks for.
type certSource struct {
	mu    sync.Mutex
	key   *ecdsa.PrivateKey
	certs map[string]*tls.Certificate
}

// Certificates are valid from 2020 to 2120, so that the lab needs no clock.
var (
	certStart = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)
	certEnd   = time.Date(2120, time.January, 1, 0, 0, 0, 0, time.UTC)
)

// maxCerts bounds the names that are remembered; tests may ask for endless ones.
const maxCerts = 1000

func (c *certSource) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(h.ServerName) },
	}
}

func (c *certSource) get(name string) (*tls.Certificate, error) {
	if name == "" {
		name = "no-name.invalid"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cert := c.certs[name]; cert != nil {
		return cert, nil
	}
	if c.key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		c.key = key
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(c.certs)) + 1),
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Postern lab"}},
		DNSNames:     []string{name},
		NotBefore:    certStart,
		NotAfter:     certEnd,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &c.key.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	if c.certs == nil || len(c.certs) >= maxCerts {
		c.certs = map[string]*tls.Certificate{}
	}
	c.certs[name] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.key}
	return c.certs[name], nil
}
