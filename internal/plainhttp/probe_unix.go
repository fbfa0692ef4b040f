//go:build unix

package plainhttp

import (
	"net"
	"syscall"
)

// A probe finds out, without waiting, whether something has come on an idle connection. So no goroutine has to wait for
// it.
type probe struct {
	conn syscall.RawConn // nil if it cannot be found out
	read func(fd uintptr) (done bool)
	err  *error // of read
}

func newProbe(c net.Conn) probe {
	system, ok := c.(syscall.Conn)
	if !ok {
		return probe{}
	}
	raw, err := system.SyscallConn()
	if err != nil {
		return probe{}
	}
	got, buffer := new(error), make([]byte, 1)
	return probe{raw, func(fd uintptr) bool {
		_, *got = syscall.Read(int(fd), buffer)
		return true
	}, got}
}

// isSilent reports whether the connection is open and nothing has come, or that is not known. Otherwise a byte may be
// lost: the connection is of no more use.
func (p probe) isSilent() bool {
	if p.conn == nil {
		return true
	}
	err := p.conn.Read(p.read)
	return err == nil && *p.err == syscall.EAGAIN
}
