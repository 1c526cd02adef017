/*
 * A plugin of QEMU's software CPU: how often each block of instructions of the lab was executed between two marks, on which side of
 * VMRUN, and in which phase of a guest's life. profile.py makes names of the addresses.
 *
 *   -plugin file=profile.so,out=FILE
 *
 * A mark is a no-op with a displacement that no compiler makes: BEGIN clears all counts, END writes FILE. Lines of FILE:
 *
 *   PHASE WORLD ADDRESS COUNT FIRST
 *
 * PHASE  0 before the first VMRUN, 1 before the guest's first instruction in user mode, 2 after it
 * WORLD  h for the lab itself, g for the guest
 * FIRST  how many instructions had been executed since BEGIN when this block first was, in this phase and world
 *
 * The interface is QEMU's docs/devel/tcg-plugins.rst, version 1; Debian has no package with its header.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed)(unsigned vcpu, void *data);
enum { NO_REGISTERS };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed, int, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed, int, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* nopl 0x4e474542(%rax) and nopl 0x444e4521(%rax). */
static const uint8_t BEGIN[7] = {0x0f, 0x1f, 0x80, 'B', 'E', 'G', 'N'};
static const uint8_t END[7] = {0x0f, 0x1f, 0x80, '!', 'E', 'N', 'D'};
static const uint8_t VMRUN[3] = {0x0f, 0x01, 0xd8};
#define KERNEL (UINT64_C(1) << 63)
/* Places of VMRUN in a kernel: two. */
#define PLACES 8

enum { PHASES = 3, WORLDS = 2 };

struct block {
	struct block *next;
	uint64_t address;
	unsigned instructions;
	bool leaves_guest;
	uint64_t count[PHASES][WORLDS], first[PHASES][WORLDS];
};

static struct block *blocks;
static const char *out;
static uint64_t total;
static unsigned phase;
static bool in_guest, in_guest_kernel;
/* Where the host goes on after VMRUN, as QEMU has it in memory: a guest's kernel may have other code at the same virtual address. */
static struct { uint64_t address; const void *host; } behind[PLACES];
static unsigned places;

static void begin(unsigned vcpu, void *data)
{
	for (struct block *b = blocks; b; b = b->next) {
		memset(b->count, 0, sizeof b->count);
		memset(b->first, 0, sizeof b->first);
	}
	total = phase = 0;
	in_guest_kernel = false;
}

static void end(unsigned vcpu, void *data)
{
	FILE *file = fopen(out, "w");

	if (!file)
		abort();
	for (struct block *b = blocks; b; b = b->next)
		for (int p = 0; p < PHASES; p++)
			for (int w = 0; w < WORLDS; w++)
				if (b->count[p][w])
					fprintf(file, "%d %c %" PRIx64 " %" PRIu64 " %" PRIu64 "\n", p, "hg"[w], b->address,
						b->count[p][w], b->first[p][w]);
	if (fclose(file))
		abort();
}

static void enter_guest(unsigned vcpu, void *data)
{
	in_guest = true;
	if (phase == 0)
		phase = 1;
}

static void count(unsigned vcpu, void *data)
{
	struct block *b = data;

	if (b->leaves_guest)
		in_guest = false;
	if (in_guest && phase == 1) {
		/* The kernel begins at its physical addresses, which look like a user's. */
		if (b->address >= KERNEL)
			in_guest_kernel = true;
		else if (in_guest_kernel)
			phase = 2;
	}
	if (!b->count[phase][in_guest])
		b->first[phase][in_guest] = total;
	b->count[phase][in_guest] += b->instructions;
	total += b->instructions;
}

static bool is(struct qemu_plugin_insn *insn, const uint8_t *bytes, size_t size)
{
	return qemu_plugin_insn_size(insn) == size && !memcmp(qemu_plugin_insn_data(insn), bytes, size);
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct block *b = calloc(1, sizeof *b);
	size_t n = qemu_plugin_tb_n_insns(tb);

	if (!b)
		abort();
	b->address = qemu_plugin_tb_vaddr(tb);
	b->instructions = n;
	b->next = blocks;
	blocks = b;
	for (unsigned i = 0; i < places; i++)
		if (behind[i].address == b->address && behind[i].host == qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0)))
			b->leaves_guest = true;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, count, NO_REGISTERS, b);
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (is(insn, VMRUN, sizeof VMRUN)) {
			uint64_t address = qemu_plugin_insn_vaddr(insn) + sizeof VMRUN;
			const char *host = (const char *)qemu_plugin_insn_haddr(insn) + sizeof VMRUN;
			bool known = false;

			for (unsigned p = 0; p < places; p++)
				known |= behind[p].address == address && behind[p].host == host;
			if (!known) {
				if (places == PLACES)
					abort();
				behind[places].address = address;
				behind[places++].host = host;
			}
			qemu_plugin_register_vcpu_insn_exec_cb(insn, enter_guest, NO_REGISTERS, NULL);
		} else if (is(insn, BEGIN, sizeof BEGIN)) {
			qemu_plugin_register_vcpu_insn_exec_cb(insn, begin, NO_REGISTERS, NULL);
		} else if (is(insn, END, sizeof END)) {
			qemu_plugin_register_vcpu_insn_exec_cb(insn, end, NO_REGISTERS, NULL);
		}
	}
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	if (argc != 1 || strncmp(argv[0], "out=", 4))
		return -1;
	out = strdup(argv[0] + 4);
	if (!out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
	return 0;
}
