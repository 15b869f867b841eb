#include <offramp.h>
