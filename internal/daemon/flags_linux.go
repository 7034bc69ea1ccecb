package daemon

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"regexp"
	"strconv"
)

// markValue is a flag that is one bit of the packet mark, written in hexadecimal.
type markValue uint32

// Set is pflag.Value's.
func (m *markValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || bits.OnesCount64(n) != 1 {
		return errors.New("want exactly one bit of 32, such as 0x2000")
	}
	*m = markValue(n)
	return nil
}

// Type is pflag.Value's.
func (*markValue) Type() string { return "bit" }

// String is pflag.Value's.
func (m *markValue) String() string { return fmt.Sprintf("%#x", uint32(*m)) }

// rangeValue is a flag that is a number with limits.
type rangeValue struct{ n, least, most int }

// Set is pflag.Value's.
func (v *rangeValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.least || n > v.most {
		return fmt.Errorf("want a number from %d to %d", v.least, v.most)
	}
	v.n = n
	return nil
}

// Type is pflag.Value's.
func (*rangeValue) Type() string { return "number" }

// String is pflag.Value's.
func (v *rangeValue) String() string { return strconv.Itoa(v.n) }

// nodeName is what the name of a Node looks like. Source: RFC 1123 section 2.1, as
// apimachinery's IsDNS1123Subdomain.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func checkNodeName(name string) error {
	if len(name) > 253 || !nodeName.MatchString(name) {
		return fmt.Errorf("%w: --node-name %q: want a Node's name: small letters, digits, - and ., at most 253", errUsage, name)
	}
	return nil
}

// checkMetrics fails if addr is not empty and no address to listen at.
func checkMetrics(addr string) error {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.ResolveTCPAddr("tcp", net.JoinHostPort(host, port))
	}
	if err != nil {
		return fmt.Errorf("%w: --metrics %q: want ADDRESS:PORT, such as 127.0.0.1:9464", errUsage, addr)
	}
	return nil
}
