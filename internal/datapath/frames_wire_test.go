package datapath_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// TestTruncatedFrames sends frames that are cut off anywhere over the real
// interfaces of a pod: a test run takes none without a whole fixed IP header,
// and a socket's frames are not linear as its are. Model and kernel must drop
// the same ones for the same reason.
func TestTruncatedFrames(t *testing.T) {
	w := newFrameWorld(t)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	sent, drops := 0, 0
	for _, pod := range w.pods[:3] {
		peer := linkIndex(t, "p"+pod.spec.Interface)
		mac, own4, own6 := packettest.MACFrom(podMAC), pod.spec.Addrs[0], pod.spec.Addrs[1]
		eth := packettest.Eth{Src: mac, Dst: pod.host}
		web4, web6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
		evil4 := netip.MustParseAddr("203.0.113.1")
		for _, frame := range [][]byte{
			packettest.Build(eth, packettest.IPv4{Src: own4, Dst: web4}, packettest.TCP{SrcPort: 4000, DstPort: 80, Flags: packettest.SYN, Options: make([]byte, 8)}, packettest.Payload("data")),
			packettest.Build(eth, packettest.IPv4{Src: own4, Dst: web4, Options: packettest.OptRouterAlert()}, packettest.UDP{SrcPort: 4000, DstPort: 53}),
			packettest.Build(eth, packettest.IPv4{Src: own4, Dst: evil4}, packettest.ICMP{Type: 8, ID: 7}),
			packettest.Build(eth, packettest.IPv4{Src: own4, Dst: web4}, packettest.ICMP{Type: 3}, packettest.IPv4{Src: web4, Dst: own4}, packettest.UDP{SrcPort: 53, DstPort: 4000}),
			packettest.Build(eth, packettest.IPv6{Src: own6, Dst: web6}, packettest.HopByHop{}, packettest.DestOpts{}, packettest.UDP{SrcPort: 4000, DstPort: 53}, packettest.Payload("data")),
			packettest.Build(eth, packettest.IPv6{Src: own6, Dst: web6}, packettest.Fragment{MoreFragments: true, ID: 1}, packettest.TCP{SrcPort: 4000, DstPort: 80, Flags: packettest.SYN}, packettest.Payload("data")),
			packettest.Build(packettest.Eth{Src: mac, Dst: packettest.Broadcast}, packettest.ARP{SenderMAC: mac, SenderIP: own4, TargetIP: netip.MustParseAddr("10.0.0.254")}),
		} {
			for n := 14; n <= len(frame); n++ {
				for _, fit := range []bool{false, true} {
					f := slices.Clone(frame[:n])
					if fit {
						fitLength(f)
					}
					m := frameModel{s: w.s, pod: pod}
					s := talk{{dir: policy.Egress, frame: f}}
					want := m.judge(s[0])
					if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: peer}); err != nil {
						t.Fatalf("%d bytes: %v", n, err)
					}
					sent++
					got := w.toldSoon(!want.accept || want.asked)
					if err := w.r.d.ResetFlows(pod.spec.Ifindex); err != nil {
						t.Fatal(err)
					}
					ret := uint32(tcxNext)
					if !want.accept {
						ret = tcxDrop
						drops++
					}
					// What has become of it is told by the event alone.
					if len(got) == 1 && (got[0].Verdict == policy.Forwarded) != want.accept {
						t.Fatalf("%s: %v by %s, model: %s\n%s", pod.key, got[0].Verdict, flow.Reason(got[0].Rule), want, s)
					}
					if text := w.compare(want, ret, got, s[0]); text != "" {
						t.Fatalf("%s: %s\n%s", pod.key, text, s)
					}
				}
			}
		}
	}
	t.Logf("%d frames, %d to be dropped", sent, drops)
}

// fitLength makes the IP header's length that of the frame, if there is one.
func fitLength(f []byte) {
	if f[12] == 0x08 && f[13] == 0x00 && len(f) >= 18 {
		f[16], f[17] = byte((len(f)-14)>>8), byte(len(f)-14)
	}
	if f[12] == 0x86 && len(f) >= 54 {
		f[18], f[19] = byte((len(f)-54)>>8), byte(len(f)-54)
	}
}

// toldSoon waits for a verdict if there will be one.
func (w *frameWorld) toldSoon(expected bool) []flow.Event {
	w.t.Helper()
	for range 2000 {
		if got := w.told(); len(got) > 0 || !expected {
			return got
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func linkIndex(t *testing.T, name string) int {
	t.Helper()
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return i.Index
}
