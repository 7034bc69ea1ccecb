package demo

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/lab"
)

// ms prints a duration in milliseconds.
func ms(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}

func (d *demo) explain(ctx context.Context) error {
	d.command("postern explain shop/frontend %s --port 443", lab.EvilV4)
	res, err := d.agent.Client.Explain(ctx, control.ExplainRequest{From: "shop/frontend", To: lab.EvilV4.String(), Port: 443, Protocol: "tcp"})
	if err != nil {
		return err
	}
	for line := range strings.Lines(res.Text) {
		if strings.HasPrefix(line, "tier ") {
			d.print("   %s", d.paint(dim, "... and the way through the tiers, rule by rule"))
			break
		}
		d.print("   %s", d.paint(dim, strings.TrimRight(line, "\n")))
	}
	d.claim(res.Verdict == "dropped", "explain says of evil what the packets say")
	return nil
}

// tighten takes a port out of the app's policy while a connection uses it.
func (d *demo) tighten(ctx context.Context) error {
	d.chapter("A tightened policy cuts a live connection, and no other",
		"shop/frontend has a stream open to web.example.com:"+strconv.Itoa(streamPort)+" and one to shop/cart, a message")
	d.print("   every millisecond. Its owner removes port %d:", streamPort)
	web, err := openStream(ctx, d.front, "tcp", netip.AddrPortFrom(lab.WebV4, streamPort))
	if err != nil {
		return err
	}
	defer web.close()
	cart, err := openStream(ctx, d.front, "tcp", netip.AddrPortFrom(d.cartVIP[0], lab.EchoPort))
	if err != nil {
		return err
	}
	defer cart.close()
	both := web.alive(ctx, time.Second) && cart.alive(ctx, time.Second)
	tight, removed := withoutStream(frontendYAML)
	d.print("")
	d.print("   %s", d.paint(red, "- "+removed))
	at, err := d.replace(d.Now, "frontend.yaml", tight)
	if err != nil {
		return err
	}
	if err := sleep(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	dest := netip.AddrPortFrom(lab.WebV4, streamPort)
	before, err := d.seen(ctx, d.front, dest)
	if err != nil {
		return err
	}
	times, err := framesTo(d.wire, netip.Addr{}, dest)
	if err != nil {
		return err
	}
	if err := sleep(ctx, 300*time.Millisecond); err != nil {
		return err
	}
	after, err := d.seen(ctx, d.front, dest)
	if err != nil {
		return err
	}
	var cut time.Duration
	if len(times) > 0 {
		cut = max(times[len(times)-1].Sub(at), 0)
	}
	d.claim(both && len(times) > 0, "both streams ran before")
	d.claim(after == before && !web.alive(ctx, 50*time.Millisecond),
		"cut: the last frame passed %s after the file was written; %d messages since, no answer", ms(cut), web.sent.Load()-web.echoed.Load())
	d.claim(cart.alive(ctx, time.Second), "the stream to shop/cart, still permitted, goes on")
	return nil
}

// withoutStream returns the app's policy without the stream's port, and the line.
func withoutStream(yaml string) (tight, removed string) {
	var b strings.Builder
	for line := range strings.Lines(yaml) {
		if strings.Contains(line, strconv.Itoa(streamPort)) {
			removed = strings.TrimSpace(line)
			continue
		}
		b.WriteString(line)
	}
	return b.String(), removed
}

// killed kills the agent and expects the kernel to go on without it.
func (d *demo) killed(ctx context.Context) error {
	d.chapter("The agent is killed; enforcement is in the kernel and stays")
	tcp, err := openStream(ctx, d.front, "tcp", netip.AddrPortFrom(d.cartVIP[0], lab.EchoPort))
	if err != nil {
		return err
	}
	defer tcp.close()
	udp, err := openStream(ctx, d.front, "udp", netip.AddrPortFrom(d.cartVIP[0], lab.EchoPort))
	if err != nil {
		return err
	}
	defer udp.close()
	evil := netip.AddrPortFrom(lab.EvilV4, 443)
	denied, err := openStream(ctx, d.front, "udp", evil)
	if err != nil {
		return err
	}
	defer denied.close()
	before, err := d.seen(ctx, d.front, evil)
	if err != nil {
		return err
	}
	if !tcp.alive(ctx, time.Second) || !udp.alive(ctx, time.Second) {
		d.claim(false, "streams to shop/cart run")
	}
	d.command("kill -9 %d", d.agent.PID())
	if err := d.agent.Kill(); err != nil {
		return err
	}
	dead := d.Now()
	good := []probe{d.toWeb(), d.toCart(), d.dnsQuestion()}
	bad := d.ways(byApp)
	if err := d.round(ctx, good, bad); err != nil {
		return err
	}
	d.command("posternd agent --manifests %s", d.agent.Manifests)
	start := d.Now()
	if err := d.agent.Start(); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := d.agent.WaitReady(ready); err != nil {
		return err
	}
	adopted := d.Now()
	d.print("   It adopted what is in the kernel in %s, %s after the kill.", ms(adopted.Sub(start)), ms(adopted.Sub(dead)))
	if err := d.write(ctx, "frontend.yaml", frontendYAML); err != nil {
		return err
	}
	again, err := openStream(ctx, d.front, "tcp", netip.AddrPortFrom(lab.WebV4, streamPort))
	d.claim(err == nil, "the new agent is at work: port %d, opened again, is open", streamPort)
	if err == nil {
		again.close()
	}
	d.claim(tcp.alive(ctx, time.Second), "a TCP stream lived through kill, restart and change")
	udp.quiet()
	denied.halt()
	sent, back := udp.sent.Load(), udp.echoed.Load()
	d.claim(sent > 0 && sent == back, "permitted datagrams meanwhile: %d sent, %d answered", sent, back)
	after, err := d.seen(ctx, d.front, evil)
	if err != nil {
		return err
	}
	d.claim(denied.sent.Load() > 0 && after == before, "denied datagrams meanwhile: %d sent, %d on the wire", denied.sent.Load(), after-before)
	return nil
}

func (d *demo) end() {
	d.print("\n%s", d.paint(green, d.summary()))
	d.print("The lab is gone; nothing is left on this machine.\n")
	d.print("Go on by hand: sudo %s lab up --agent    (then follow what it prints)", d.Program)
}

func (d *demo) summary() string {
	return strconv.Itoa(d.claims) + " claims, all true, in " + strconv.FormatFloat(d.Now().Sub(d.start).Seconds(), 'f', 1, 64) + " s."
}

func sleep(ctx context.Context, dur time.Duration) error {
	t := time.NewTimer(dur)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
