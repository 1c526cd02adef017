/* The init of a guest that does nothing but to be there: marks its first instruction, and ends the machine. */
#include <linux/reboot.h>
#include <sys/syscall.h>

#define MARK_LEAF 0x4d41524b /* as in marks.h, which needs a C library */

void _start(void)
{
	unsigned a = MARK_LEAF, b, c = 0, d;
	long result = SYS_reboot;
	register const void *no_text __asm__("r10") = 0;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	__asm__ volatile("syscall"
			 : "+a"(result)
			 : "D"(LINUX_REBOOT_MAGIC1), "S"(LINUX_REBOOT_MAGIC2), "d"(LINUX_REBOOT_CMD_RESTART), "r"(no_text)
			 : "rcx", "r11", "memory");
	for (;;)
		;
}
