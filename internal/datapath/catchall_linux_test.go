package datapath

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/testenv"
)

// TestCatchAllFollowsNames: a renamed interface is caught again once it is added
// by its new name, by this process or the next one.
func TestCatchAllFollowsNames(t *testing.T) {
	testenv.RequireRoot(t)
	runtime.LockOSThread() // never unlocked: the thread is thrown away
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod0"}, PeerName: "peer", PeerHardwareAddr: mac}); err != nil {
		t.Fatal(err)
	}
	links := map[string]netlink.Link{}
	for _, name := range []string{"pod0", "peer"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
		links[name] = l
	}
	host := links["pod0"].Attrs()
	if err := netlink.AddrAdd(links["pod0"], &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, 254), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	for _, conf := range []string{"all", "pod0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+conf+"/rp_filter", []byte("0"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sock, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(raw) }()
	frame := packettest.Build(packettest.Eth{Src: packettest.MACFrom(mac), Dst: packettest.MACFrom(host.HardwareAddr)},
		packettest.IPv4{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.254")}, packettest.UDP{SrcPort: 1, DstPort: 7})
	passes := func(when string, want bool) {
		t.Helper()
		if err := unix.Sendto(raw, frame, 0, &unix.SockaddrLinklayer{Ifindex: links["peer"].Attrs().Index}); err != nil {
			t.Fatal(err)
		}
		if err := sock.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := sock.ReadFrom(make([]byte, 64)); (err == nil) != want {
			t.Fatalf("%s: the frame passes: %v, want %v", when, err == nil, want)
		}
	}
	open := func() *catchAll {
		t.Helper()
		c, err := openCatchAll(DefaultMark)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	rename := func(name string) {
		t.Helper()
		if err := netlink.LinkSetName(links["pod0"], name); err != nil {
			t.Fatal(err)
		}
	}
	put := func(c *catchAll, name string) {
		t.Helper()
		if err := c.add(name, host.Index); err != nil {
			t.Fatal(err)
		}
	}
	passes("no chain", true)
	c := open()
	put(c, "pod0")
	passes("added", false)
	rename("pod1")
	put(c, "pod1")
	passes("added by its new name", false)
	if back, err := c.repair(); err != nil || len(back) > 0 {
		t.Errorf("repaired %v: %v", back, err)
	}
	d := &Datapath{catchAll: c, endpoints: map[int]*endpoint{host.Index: {spec: EndpointSpec{Interface: "pod1", Ifindex: host.Index}, verified: true}}}
	rename("pod2")
	if mended, err := d.FollowNames(); err != nil || len(mended) != 1 || d.Interface(host.Index) != "pod2" || d.endpoints[host.Index].verified {
		t.Errorf("mended %v: %v; %+v", mended, err, d.endpoints[host.Index])
	}
	passes("followed", false)
	if mended, err := d.FollowNames(); err != nil || len(mended) > 0 {
		t.Errorf("mended %v: %v", mended, err)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	rename("pod3")
	c = open()
	defer func() { _ = c.close() }()
	if err := c.addAll([]EndpointSpec{{Interface: "pod3", Ifindex: host.Index}}); err != nil {
		t.Fatal(err)
	}
	passes("the next process", false)
	if err := c.remove(host.Index); err != nil {
		t.Fatal(err)
	}
	passes("removed", true)
}
