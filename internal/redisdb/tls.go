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

	"github.com/gomodule/redigo/redis"
)

const (
	tlsCheckDelay = 700 * time.Millisecond // without success, after which Open checks whether the port uses TLS
	lookTimeout   = 400 * time.Millisecond // of each look at what the servers are
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
	case noTLS:
		return fmt.Errorf("%w: %w", err, r.otherScheme())
	case unknownCA:
		return fmt.Errorf("%w: REDIS_CA_FILE names the file of its CA", err)
	case !isAlert(err) || !strings.Contains(err.Error(), "certificate"):
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

// lookAt calls look with the address of each server that the URL names, for a short time, and returns the first error.
func (r *URL) lookAt(ctx context.Context, look func(ctx context.Context, address string) error) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	addresses := r.seeds
	if r.topology == singleServer {
		addresses = []string{r.address}
	}
	wrong := make([]error, len(addresses))
	Each(len(addresses), len(addresses), func(i int) {
		if err := look(ctx, addresses[i]); err != nil {
			wrong[i] = fmt.Errorf("%s: %w", addresses[i], err)
		}
	})
	return cmp.Or(wrong...)
}

// checkTLS returns an error if the server at address certainly uses TLS and the URL says that it does not, or the
// reverse, or if it refuses the client's certificate or demands one. A server may show that only to a client
// that tries the other, or that sends nothing.
func (r *URL) checkTLS(ctx context.Context, address string) error {
	if r.network == "unix" {
		return nil
	}
	if !r.tls {
		conn, err := handshake(ctx, address, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
		}
		if err == nil || isAlert(err) {
			return r.otherScheme()
		}
		return nil
	}
	if respondsPlainly(ctx, address) {
		return r.otherScheme()
	}
	conn, err := handshake(ctx, address, r.tlsConfig(""))
	if err == nil {
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		_ = conn.SetReadDeadline(deadline)
		_, err = conn.Read(make([]byte, 1))
	}
	if isAlert(err) {
		return r.explain(err)
	}
	return nil
}

// checkKind returns an error if the server at address is a Sentinel, which has refused the password of the URL, and the
// URL says that it is another server.
func (r *URL) checkKind(ctx context.Context, address string) error {
	anonymous := URL{network: r.network, tls: r.tls, certificates: r.certificates}
	conn, err := anonymous.dial(ctx, address, lookTimeout)
	if err != nil || r.topology == sentinelMaster {
		return nil
	}
	defer conn.Close()
	if info, _ := redis.String(redis.DoContext(conn, ctx, "INFO", "server")); isSentinel(info) {
		return errSentinel
	}
	return nil
}

// handshake makes a TLS connection, over which nothing is sent yet.
func handshake(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
}

// isAlert reports whether the peer has ended a TLS connection with an alert.
func isAlert(err error) bool {
	return err != nil && strings.Contains(err.Error(), "remote error: tls: ")
}

// respondsPlainly reports whether the server at address responds to a PING without TLS as Redis does, even one that
// asks for a password.
func respondsPlainly(ctx context.Context, address string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	// A Redis that uses TLS closes the connection. Another server may be silent: that leaves time for TLS.
	_ = conn.SetDeadline(time.Now().Add(lookTimeout / 2))
	_, _ = conn.Write([]byte("PING\r\n"))
	first, err := bufio.NewReader(conn).ReadByte()
	return err == nil && (first == '+' || first == '-')
}

// openChecked calls open and explains its error. It ends open early if the scheme of the URL is certainly wrong:
// neither silence nor a closed connection would tell that.
func (r *URL) openChecked(ctx context.Context, open func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	checked := make(chan error, 1)
	check := func() {
		wrong := r.lookAt(ctx, r.checkTLS)
		checked <- wrong
		if wrong != nil {
			cancel(wrong)
		}
	}
	timer := time.AfterFunc(tlsCheckDelay, check)
	err := open(ctx)
	_, ofNetwork := errors.AsType[net.Error](err)
	reply, _ := errors.AsType[redis.Error](err)
	switch early := timer.Stop(); {
	case err == nil:
		return nil
	case early && (ofNetwork || errors.Is(err, io.EOF)):
		check()
	case strings.Contains(string(reply), "AUTH") || strings.HasPrefix(string(reply), "WRONGPASS"):
		return cmp.Or(r.lookAt(ctx, r.checkKind), err)
	case early:
		return r.explain(err)
	}
	return cmp.Or(<-checked, r.explain(err))
}
