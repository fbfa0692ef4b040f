//go:build !unix

package plainhttp

import "net"

// A probe knows nothing of a connection. That the server has closed it is noticed only by the next request.
type probe struct{}

func newProbe(net.Conn) probe { return probe{} }

func (probe) isSilent() bool { return true }
