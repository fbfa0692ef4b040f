package redisdb

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	schemeCheckDelay   = 700 * time.Millisecond // without success, after which Open checks whether the port uses TLS
	schemeCheckTimeout = 400 * time.Millisecond

	tlsAlert = "remote error: tls: " // begins the error of crypto/tls for an alert of the peer
)

// TLSFiles has the names of PEM files for TLS to Redis and its Sentinels. Each may be "".
type TLSFiles struct {
	CA   string // whose certificates are trusted, instead of the system's
	Cert string // the client's certificate, for servers that ask for one; needs Key
	Key  string // its key
}

// certificates is what was read last from TLSFiles.
type certificates struct {
	files  TLSFiles
	config atomic.Pointer[tls.Config] // whose content never changes
}

// SetTLSFiles reads the files for connections to Redis. It has no effect if r is nil or no file is named. It must be
// called before Open. The error names the setting that is wrong.
func (r *URL) SetTLSFiles(files TLSFiles) error {
	if r == nil || files == (TLSFiles{}) {
		return nil
	}
	switch {
	case files.Cert == "" && files.Key != "":
		return errors.New("REDIS_KEY_FILE: there is no REDIS_CERT_FILE")
	case files.Cert != "" && files.Key == "":
		return errors.New("REDIS_CERT_FILE: there is no REDIS_KEY_FILE")
	case !r.tls && files.CA != "":
		return fmt.Errorf("REDIS_CA_FILE: REDIS_URL has no TLS: it must begin with %s://", schemeOf(r.topology, true))
	case !r.tls:
		return fmt.Errorf("REDIS_CERT_FILE: REDIS_URL has no TLS: it must begin with %s://", schemeOf(r.topology, true))
	}
	r.certificates = &certificates{files: files}
	return r.LoadTLS()
}

// LoadTLS reads the files of SetTLSFiles again, for connections that are made from now on. After an error, which names
// the setting that is wrong, those that were read before stay in use. It may be called at any time.
func (r *URL) LoadTLS() error {
	if r.certificates == nil {
		return nil
	}
	files, config := r.certificates.files, new(tls.Config)
	if files.CA != "" {
		content, err := os.ReadFile(files.CA)
		if err != nil {
			return fmt.Errorf("REDIS_CA_FILE: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(content) {
			return fmt.Errorf("REDIS_CA_FILE: %q has no certificate in PEM form", files.CA)
		}
	}
	if files.Cert != "" {
		cert, err := os.ReadFile(files.Cert)
		if err != nil {
			return fmt.Errorf("REDIS_CERT_FILE: %w", err)
		}
		key, err := os.ReadFile(files.Key)
		if err != nil {
			return fmt.Errorf("REDIS_KEY_FILE: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("REDIS_CERT_FILE, REDIS_KEY_FILE: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	r.certificates.config.Store(config)
	return nil
}

// tlsConfig returns the config for a connection to a server that has a certificate for that name; "": for its address.
func (r *URL) tlsConfig(serverName string) *tls.Config {
	config := new(tls.Config)
	if r.certificates != nil {
		config = r.certificates.config.Load().Clone()
	}
	config.ServerName = serverName
	return config
}

// explain adds to an error of a connection to Redis what to do about it, where that is certain.
func (r *URL) explain(err error) error {
	_, unknownCA := errors.AsType[x509.UnknownAuthorityError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case err == nil:
		return nil
	case unknownCA:
		return fmt.Errorf("%w: REDIS_CA_FILE names the file of its CA", err)
	case noTLS:
		return r.otherScheme()
	case !r.tls || !strings.Contains(err.Error(), tlsAlert) || !strings.Contains(err.Error(), "certificate"):
		return err
	case r.certificates == nil || r.certificates.files.Cert == "":
		return fmt.Errorf("%w: it asks for a certificate, which REDIS_CERT_FILE and REDIS_KEY_FILE name", err)
	}
	return fmt.Errorf("%w: it does not accept the certificate in REDIS_CERT_FILE", err)
}

// otherScheme returns the error for a server that uses TLS where the URL says that it does not, or the reverse.
func (r *URL) otherScheme() error {
	if r.tls {
		return fmt.Errorf("this port does not use TLS: use %s://", schemeOf(r.topology, false))
	}
	return fmt.Errorf("this port uses TLS: use %s://", schemeOf(r.topology, true))
}

// checkScheme returns an error if a server that the URL names certainly uses TLS and the URL says that it does not, or
// the reverse. A server shows that to a client that tries the other: it is silent, or closes the connection.
func (r *URL) checkScheme(ctx context.Context) error {
	if r.network == "unix" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, schemeCheckTimeout)
	defer cancel()
	addresses := r.seeds
	if r.topology == singleServer {
		addresses = []string{r.address}
	}
	wrong := make([]error, len(addresses))
	each(len(addresses), len(addresses), func(i int) {
		if usesTLS, certain := probeTLS(ctx, addresses[i], !r.tls); certain && usesTLS != r.tls {
			wrong[i] = fmt.Errorf("%s: %w", addresses[i], r.otherScheme())
		}
	})
	return cmp.Or(wrong...)
}

// probeTLS tries TLS, or a PING without it, and reports whether the server uses TLS, if that is certain then. No secret
// is sent.
func probeTLS(ctx context.Context, address string, try bool) (usesTLS, certain bool) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return false, false
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if try {
		err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
		return true, err == nil || strings.HasPrefix(err.Error(), tlsAlert)
	}
	_, _ = conn.Write([]byte("PING\r\n"))
	first, err := bufio.NewReader(conn).ReadByte()
	return false, err == nil && (first == '+' || first == '-') // +PONG, -NOAUTH
}

// openChecked calls open and explains its error. It ends open early if the scheme of the URL is certainly wrong:
// neither silence nor a closed connection would tell that.
func (r *URL) openChecked(ctx context.Context, open func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	checked := make(chan error, 1)
	check := func() {
		wrong := r.checkScheme(ctx)
		checked <- wrong
		if wrong != nil {
			cancel(wrong)
		}
	}
	timer := time.AfterFunc(schemeCheckDelay, check)
	err := open(ctx)
	_, ofNetwork := errors.AsType[net.Error](err)
	switch early := timer.Stop(); {
	case err == nil:
		return nil
	case early && (ofNetwork || errors.Is(err, io.EOF)):
		check()
	case early:
		checked <- nil
	}
	return r.explain(cmp.Or(<-checked, err))
}
