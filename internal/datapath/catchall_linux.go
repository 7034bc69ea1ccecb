package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// catchAll is the nftables table that drops what comes from a pod's interface
// without the mark of inspection. It has one chain per interface, in the netdev
// family at ingress: that runs right after tcx and sees bridged frames too.
//
// The table is owned by this process's socket, so that `nft flush ruleset` of
// somebody else passes it by, and persistent, so that it outlives the process.
// Source: NFT_TABLE_F_OWNER (5.12), NFT_TABLE_F_PERSIST (6.9),
// include/uapi/linux/netfilter/nf_tables.h. Before 6.9 it has neither.
type catchAll struct {
	conn *netlink.Conn
	mark uint32
	// owned: the kernel took the flags.
	owned bool
	// devices is what the table should hold: chain name -> interface.
	devices map[string]string
}

const (
	catchAllTable  = "postern"
	chainsPerBatch = 32
	nftTimeout     = 5 * time.Second

	nftOwner   = 0x2
	nftPersist = 0x4

	nlaNested    = 0x8000
	nftaHookDevs = 4 // NFTA_HOOK_DEVS, missing in x/sys
)

func chainName(ifindex int) string { return "pod-" + strconv.Itoa(ifindex) }

// openCatchAll makes or takes over the table and learns its chains.
func openCatchAll(mark uint32) (*catchAll, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w (the kernel needs CONFIG_NF_TABLES)", err)
	}
	c := &catchAll{conn: conn, mark: mark, devices: map[string]string{}}
	if err := c.ensureTable(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	have, err := c.chains()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.devices = have
	return c, nil
}

func (c *catchAll) ensureTable() error {
	for _, flags := range []uint32{nftOwner | nftPersist, 0} {
		err := c.batch(message(unix.NFT_MSG_NEWTABLE, netlink.Create, attrString(unix.NFTA_TABLE_NAME, catchAllTable), attrU32(unix.NFTA_TABLE_FLAGS, flags)))
		if err == nil {
			c.owned = flags != 0
			return nil
		}
		if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EPERM) {
			return fmt.Errorf("nftables table %s is owned by another process: is another agent running on this node? %w", catchAllTable, err)
		}
		if flags == 0 {
			return fmt.Errorf("nftables table %s: %w (the kernel needs CONFIG_NF_TABLES_NETDEV)", catchAllTable, err)
		}
	}
	return nil
}

func (c *catchAll) close() error { return c.conn.Close() }

// add puts an interface under the catch-all; a second time does nothing. One that
// has another name now is put there anew: from kernel 6.16 on a chain is of a name,
// and a renamed interface is out of it, while the chain is listed as before.
func (c *catchAll) add(device string, ifindex int) error {
	name := chainName(ifindex)
	if c.devices[name] == device {
		return nil
	}
	if err := c.put(name, device); err != nil {
		return fmt.Errorf("interface %s: catch-all: %w", device, err)
	}
	c.devices[name] = device
	return nil
}

// addAll is add for many interfaces in one transaction; if that fails, each is
// tried alone, so that one that vanished does not keep the others open.
func (c *catchAll) addAll(specs []EndpointSpec) error {
	// The acknowledgements of one transaction must fit into the socket's buffer.
	for ; len(specs) > chainsPerBatch; specs = specs[chainsPerBatch:] {
		if err := c.addAll(specs[:chainsPerBatch]); err != nil {
			return err
		}
	}
	var msgs []netlink.Message
	var fresh []EndpointSpec
	for _, s := range specs {
		switch c.devices[chainName(s.Ifindex)] {
		case s.Interface:
		case "":
			msgs = append(msgs, c.chain(chainName(s.Ifindex), s.Interface)...)
			fresh = append(fresh, s)
		default:
			if err := c.add(s.Interface, s.Ifindex); err != nil {
				return err
			}
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if len(fresh) > 1 && c.batch(msgs...) == nil {
		for _, s := range fresh {
			c.devices[chainName(s.Ifindex)] = s.Interface
		}
		return nil
	}
	var errs []error
	for _, s := range fresh {
		errs = append(errs, c.add(s.Interface, s.Ifindex))
	}
	return errors.Join(errs...)
}

// put makes an interface's chain, in place of one of that name if there is one.
func (c *catchAll) put(name, device string) error {
	err := c.batch(append(dropChain(name), c.chain(name, device)...)...)
	if errors.Is(err, unix.ENOENT) {
		return c.batch(c.chain(name, device)...)
	}
	return err
}

// chain is what makes an interface's chain and its rule.
func (c *catchAll) chain(name, device string) []netlink.Message {
	mask := make([]byte, 4)
	binary.NativeEndian.PutUint32(mask, c.mark)
	zero := make([]byte, 4)
	exprs := nested(unix.NFTA_RULE_EXPRESSIONS,
		expression("meta", attrU32(unix.NFTA_META_DREG, 1), attrU32(unix.NFTA_META_KEY, unix.NFT_META_MARK)),
		expression("bitwise", attrU32(unix.NFTA_BITWISE_SREG, 1), attrU32(unix.NFTA_BITWISE_DREG, 1), attrU32(unix.NFTA_BITWISE_LEN, 4),
			nested(unix.NFTA_BITWISE_MASK, attr(unix.NFTA_DATA_VALUE, mask)), nested(unix.NFTA_BITWISE_XOR, attr(unix.NFTA_DATA_VALUE, zero))),
		expression("cmp", attrU32(unix.NFTA_CMP_SREG, 1), attrU32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ), nested(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, zero))),
		expression("counter"),
		expression("immediate", attrU32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
			nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, attrU32(unix.NFTA_VERDICT_CODE, 0)))))
	return []netlink.Message{
		message(unix.NFT_MSG_NEWCHAIN, netlink.Create,
			attrString(unix.NFTA_CHAIN_TABLE, catchAllTable), attrString(unix.NFTA_CHAIN_NAME, name),
			nested(unix.NFTA_CHAIN_HOOK, attrU32(unix.NFTA_HOOK_HOOKNUM, unix.NF_NETDEV_INGRESS), attrU32(unix.NFTA_HOOK_PRIORITY, 0), attrString(unix.NFTA_HOOK_DEV, device)),
			attrU32(unix.NFTA_CHAIN_POLICY, 1), attrString(unix.NFTA_CHAIN_TYPE, "filter")),
		message(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append,
			attrString(unix.NFTA_RULE_TABLE, catchAllTable), attrString(unix.NFTA_RULE_CHAIN, name), exprs),
	}
}

// remove takes an interface out; the kernel has done so already if it is gone.
func (c *catchAll) remove(ifindex int) error {
	name := chainName(ifindex)
	delete(c.devices, name)
	if err := c.batch(dropChain(name)...); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("catch-all chain %s: %w", name, err)
	}
	return nil
}

// dropChain is what removes a chain and its rule.
func dropChain(name string) []netlink.Message {
	return []netlink.Message{
		message(unix.NFT_MSG_DELRULE, 0, attrString(unix.NFTA_RULE_TABLE, catchAllTable), attrString(unix.NFTA_RULE_CHAIN, name)),
		message(unix.NFT_MSG_DELCHAIN, 0, attrString(unix.NFTA_CHAIN_TABLE, catchAllTable), attrString(unix.NFTA_CHAIN_NAME, name)),
	}
}

// repair puts back what is missing and returns the interfaces it put back.
func (c *catchAll) repair() ([]string, error) {
	if err := c.ensureTable(); err != nil {
		return nil, err
	}
	have, err := c.chains()
	if err != nil {
		return nil, err
	}
	var back []string
	for name, device := range c.devices {
		if have[name] == device {
			continue
		}
		if err := c.put(name, device); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue // the interface is gone
			}
			return back, fmt.Errorf("interface %s: catch-all: %w", device, err)
		}
		back = append(back, device)
	}
	slices.Sort(back)
	return back, nil
}

// chains reads the table's chains that hold a rule: name -> interface.
func (c *catchAll) chains() (map[string]string, error) {
	out := map[string]string{}
	rules := map[string]bool{}
	for _, what := range []uint16{unix.NFT_MSG_GETRULE, unix.NFT_MSG_GETCHAIN} {
		msgs, err := c.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | int(what)), Flags: netlink.Request | netlink.Dump},
			Data:   []byte{unix.NFPROTO_NETDEV, unix.NFNETLINK_V0, 0, 0},
		})
		if err != nil {
			return nil, fmt.Errorf("nftables: list: %w", err)
		}
		for _, m := range msgs {
			table, chain, device, err := parseChain(m.Data, what)
			if err != nil {
				return nil, fmt.Errorf("nftables: list: %w", err)
			}
			switch {
			case table != catchAllTable || !strings.HasPrefix(chain, "pod-"):
			case what == unix.NFT_MSG_GETRULE:
				rules[chain] = true
			case rules[chain]:
				out[chain] = device
			}
		}
	}
	return out, nil
}

func parseChain(data []byte, what uint16) (table, chain, device string, err error) {
	if len(data) < 4 {
		return "", "", "", errors.New("short message")
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return "", "", "", err
	}
	for ad.Next() {
		switch typ := ad.Type(); {
		case typ == unix.NFTA_CHAIN_TABLE: // equals NFTA_RULE_TABLE
			table = ad.String()
		case what == unix.NFT_MSG_GETRULE && typ == unix.NFTA_RULE_CHAIN:
			chain = ad.String()
		case what == unix.NFT_MSG_GETCHAIN && typ == unix.NFTA_CHAIN_NAME:
			chain = ad.String()
		case what == unix.NFT_MSG_GETCHAIN && typ == unix.NFTA_CHAIN_HOOK:
			ad.Nested(func(n *netlink.AttributeDecoder) error {
				for n.Next() {
					switch n.Type() {
					case unix.NFTA_HOOK_DEV:
						device = n.String()
					case nftaHookDevs:
						n.Nested(func(d *netlink.AttributeDecoder) error {
							for d.Next() {
								if device == "" {
									device = d.String()
								}
							}
							return nil
						})
					}
				}
				return nil
			})
		}
	}
	return table, chain, device, ad.Err()
}

// removeCatchAll deletes the table, whoever made it.
func removeCatchAll() error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c := &catchAll{conn: conn}
	// An orphaned table has to be adopted to be deleted from 6.9 on.
	if err := c.ensureTable(); err != nil {
		return errors.Join(err, conn.Close())
	}
	err = c.batch(message(unix.NFT_MSG_DELTABLE, 0, attrString(unix.NFTA_TABLE_NAME, catchAllTable)))
	return errors.Join(err, conn.Close())
}

// batch sends messages as one transaction and returns the first error.
func (c *catchAll) batch(msgs ...netlink.Message) error {
	begin := netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request},
		Data:   []byte{0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
	}
	end := begin
	end.Header.Type = unix.NFNL_MSG_BATCH_END
	all := append(append([]netlink.Message{begin}, msgs...), end)
	sent, err := c.conn.SendMessages(all)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// Each message is answered, by an acknowledgement or an error. If one is lost,
	// rather fail than wait for ever.
	if err := c.conn.SetReadDeadline(time.Now().Add(nftTimeout)); err != nil { //nolint:forbidigo // a socket's deadline is in the system's time
		return fmt.Errorf("nftables: %w", err)
	}
	var first error
	for range sent[1 : len(sent)-1] {
		if _, err := c.conn.Receive(); err != nil {
			if first == nil {
				first = err
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
	}
	if err := c.conn.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return first
}

func message(what uint16, flags netlink.HeaderFlags, attrs ...netlink.Attribute) netlink.Message {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		data = nil // attributes of ours are never too long; the kernel refuses an empty message
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | int(what)), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append([]byte{unix.NFPROTO_NETDEV, unix.NFNETLINK_V0, 0, 0}, data...),
	}
}

func attr(typ uint16, data []byte) netlink.Attribute { return netlink.Attribute{Type: typ, Data: data} }

func attrString(typ uint16, s string) netlink.Attribute { return attr(typ, []byte(s+"\x00")) }

// attrU32 encodes in network order, as nf_tables has all its numbers.
func attrU32(typ uint16, v uint32) netlink.Attribute {
	return attr(typ, binary.BigEndian.AppendUint32(nil, v))
}

func nested(typ uint16, attrs ...netlink.Attribute) netlink.Attribute {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		data = nil
	}
	return attr(typ|nlaNested, data)
}

func expression(name string, attrs ...netlink.Attribute) netlink.Attribute {
	return nested(unix.NFTA_LIST_ELEM, attrString(unix.NFTA_EXPR_NAME, name), nested(unix.NFTA_EXPR_DATA, attrs...))
}
