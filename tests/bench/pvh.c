/* Makes our kernel startable by the way in that PVH guests have (docs/misc/pvh.pandoc of Xen), for virtual machine monitors that know no
 * other for an ELF image: QEMU, Cloud Hypervisor. They begin here, in 32-bit mode without paging and with a description of the machine; the
 * kernel begins in 64-bit mode with a zero page (Documentation/arch/x86/boot.rst). vmms.py adds this code to the kernel's image.
 *
 * KERNEL: where the kernel begins.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__asm__(".section .start, \"ax\"\n"
	".globl _start\n"
	"_start:\n"
	"	cld\n"
	"	movl $stack_end, %esp\n"
	"	pushl %ebx\n"
	"	call prepare\n"
	"	movl $tables, %eax\n"
	"	movl %eax, %cr3\n"
	"	movl %cr4, %eax\n"
	"	orl $0x20, %eax\n" /* PAE */
	"	movl %eax, %cr4\n"
	"	movl $0xc0000080, %ecx\n" /* EFER */
	"	rdmsr\n"
	"	orl $0x100, %eax\n" /* LME */
	"	wrmsr\n"
	"	movl %cr0, %eax\n"
	"	orl $0x80000001, %eax\n" /* PG, PE */
	"	movl %eax, %cr0\n"
	"	lgdt gdt_register\n"
	"	ljmp $0x10, $long_mode\n"
	".code64\n"
	"long_mode:\n"
	"	movl $0x18, %eax\n"
	"	movl %eax, %ds\n"
	"	movl %eax, %es\n"
	"	movl %eax, %ss\n"
	"	movl $zero_page, %esi\n"
	"	movl $" KERNEL ", %eax\n"
	"	jmp *%rax\n"
	".code32\n"
	".balign 8\n"
	"gdt:	.quad 0, 0, 0x00af9a000000ffff, 0x00cf92000000ffff\n"
	"gdt_register: .word 31\n"
	"	.long gdt\n"
	".text\n");

struct start_info {
	u32 magic, version, flags, modules;
	u64 module_list, command_line, rsdp, memory_map;
	u32 memory_entries, reserved;
};
struct module { u64 address, size, command_line, reserved; };
struct memory { u64 address, size; u32 type, reserved; };
struct e820 { u64 address, size; u32 type; } __attribute__((packed));

#define MOST_MEMORY 128
#define GIBIBYTES 4

u8 zero_page[4096] __attribute__((aligned(4096)));
u64 tables[2 + GIBIBYTES][512] __attribute__((aligned(4096)));
u8 stack[4096] __attribute__((aligned(16)));
__asm__(".globl stack_end\n.set stack_end, stack + 4096\n");

#define FIELD(type, offset) (*(type *)(zero_page + (offset)))

void prepare(const struct start_info *info)
{
	const struct module *module = (void *)(u32)info->module_list;
	const struct memory *memory = (void *)(u32)info->memory_map;
	struct e820 *map = (void *)(zero_page + 0x2d0);
	for (u32 i = 0; i < info->memory_entries && i < MOST_MEMORY; i++)
		map[i] = (struct e820){memory[i].address, memory[i].size, memory[i].type};
	FIELD(u8, 0x1e8) = info->memory_entries < MOST_MEMORY ? info->memory_entries : MOST_MEMORY;
	FIELD(u64, 0x70) = info->rsdp;
	FIELD(u16, 0x1fe) = 0xaa55;	  /* boot_flag */
	FIELD(u32, 0x202) = 0x53726448; /* header */
	FIELD(u16, 0x206) = 0x20c;	  /* version */
	FIELD(u8, 0x210) = 0xff;	  /* type_of_loader */
	FIELD(u8, 0x211) = 1;		  /* loadflags: LOADED_HIGH */
	FIELD(u32, 0x228) = info->command_line;
	FIELD(u32, 0x238) = 2047; /* cmdline_size */
	if (info->modules) {
		FIELD(u32, 0x218) = module->address;
		FIELD(u32, 0x21c) = module->size;
	}
	tables[0][0] = (u32)tables[1] | 3;
	for (u32 i = 0; i < GIBIBYTES; i++) {
		tables[1][i] = (u32)tables[2 + i] | 3;
		for (u32 j = 0; j < 512; j++)
			tables[2 + i][j] = ((u64)i << 30 | j << 21) | 0x83;
	}
}
