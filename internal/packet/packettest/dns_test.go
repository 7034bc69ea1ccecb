package packettest_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

func TestDNS(t *testing.T) {
	msg := packettest.DNS{
		ID: 0x1234, Flags: packettest.DNSResponse, Questions: []packettest.DNSQuestion{{Name: packettest.DNSLabels("a.bc."), Type: packettest.DNSTypeA}},
		Answers: []packettest.DNSRecord{
			{Name: packettest.DNSLabels("a.bc"), Type: packettest.DNSTypeCNAME, TTL: 1, Target: packettest.DNSLabels("x.bc")},
			{Name: packettest.DNSLabels("x.bc"), Type: packettest.DNSTypeA, TTL: 0x10203, Data: []byte{192, 0, 2, 1}, Length: new(uint16(9))},
			{Raw: []byte{0xc0}, Class: packettest.DNSClassCH},
		},
		ARCount: new(uint16(7)), Trailer: []byte("end"),
	}
	const header = "\x12\x34\x80\x00\x00\x01\x00\x03\x00\x00\x00\x07" + "\x01a\x02bc\x00\x00\x01\x00\x01"
	for how, want := range map[packettest.DNSCompression]string{
		packettest.DNSWhole: "\x01a\x02bc\x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x06\x01x\x02bc\x00" +
			"\x01x\x02bc\x00\x00\x01\x00\x01\x00\x01\x02\x03\x00\x09\xc0\x00\x02\x01",
		packettest.DNSFirst: "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x01\x00\x04\x01x\xc0\x0e" +
			"\xc0\x22\x00\x01\x00\x01\x00\x01\x02\x03\x00\x09\xc0\x00\x02\x01",
		packettest.DNSLatest: "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x01\x00\x04\x01x\xc0\x0e" +
			"\xc0\x22\x00\x01\x00\x01\x00\x01\x02\x03\x00\x09\xc0\x00\x02\x01",
	} {
		msg.Compression = how
		want = header + want + "\xc0\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00" + "end"
		if got := msg.Bytes(); string(got) != want {
			t.Errorf("%d: got\n%x, want\n%x", how, got, want)
		}
		frame := packettest.Build(packettest.Eth{}, packettest.IPv4{}, packettest.UDP{SrcPort: 53}, msg)
		if !bytes.HasSuffix(frame, []byte(want)) || len(frame) != 14+20+8+len(want) {
			t.Errorf("%d: as a layer: %x", how, frame)
		}
	}
	// A third time, the second is what is pointed to.
	a := packettest.DNSRecord{Name: packettest.DNSLabels("a.bc")}
	msg = packettest.DNS{Compression: packettest.DNSLatest, Answers: []packettest.DNSRecord{a, a, a}}
	if b := msg.Bytes(); !bytes.Equal(b[28:30], []byte{0xc0, 12}) || !bytes.Equal(b[40:42], []byte{0xc0, 28}) {
		t.Errorf("latest: %x", b)
	}
}

// TestRandomDNS: one seed, one message.
func TestRandomDNS(t *testing.T) {
	for seed := range uint64(1000) {
		a, b := packettest.RandomDNS(rand.New(rand.NewPCG(seed, 0))), packettest.RandomDNS(rand.New(rand.NewPCG(seed, 0)))
		if !bytes.Equal(a, b) {
			t.Fatalf("seed %d: %x, %x", seed, a, b)
		}
	}
}
