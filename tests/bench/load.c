/* Uses memory in a container.
 *
 *   load take MIB    writes to so much memory, says so, and gives it up when its standard input has ended
 */
#include <err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char ended;
	if (argc != 3 || strcmp(argv[1], "take") != 0)
		errx(2, "load take MIB");
	size_t size = (size_t)atoi(argv[2]) << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	memset(memory, 1, size);
	if (write(1, "taken\n", 6) != 6)
		err(1, "write");
	while (read(0, &ended, 1) > 0)
		;
	return 0;
}
